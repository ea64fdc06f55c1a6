// Command vault-server runs a real HashiCorp Vault core behind Vault's own HTTP
// handler, for integration tests: in-memory storage, Shamir seal with one key,
// KV v2 at secret/ and v1 at kv/, the database engine with Vault's own PostgreSQL
// plugin, approle, userpass, jwt and kubernetes, and an optional file audit device.
// Everything in it is lost when it stops. Not for production.
package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"flag"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	jwt "github.com/hashicorp/vault-plugin-auth-jwt"
	kubernetes "github.com/hashicorp/vault-plugin-auth-kubernetes"
	kv "github.com/hashicorp/vault-plugin-secrets-kv"
	"github.com/hashicorp/vault/audit"
	auditfile "github.com/hashicorp/vault/builtin/audit/file"
	"github.com/hashicorp/vault/builtin/credential/approle"
	"github.com/hashicorp/vault/builtin/credential/userpass"
	"github.com/hashicorp/vault/builtin/logical/database"
	"github.com/hashicorp/vault/helper/namespace"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/internalshared/configutil"
	"github.com/hashicorp/vault/plugins/database/postgresql"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical/inmem"
	"github.com/hashicorp/vault/vault"
)

const postgresPlugin = "postgresql-database-plugin"

// onlyPostgres is the registry of built-in plugins: the database engine looks its
// plugin up in it. Every engine is given to the core by factory.
type onlyPostgres struct{}

func (onlyPostgres) Contains(name string, kind consts.PluginType) bool {
	return name == postgresPlugin && kind == consts.PluginTypeDatabase
}

func (r onlyPostgres) Get(name string, kind consts.PluginType) (func() (any, error), bool) {
	return postgresql.New, r.Contains(name, kind)
}

func (onlyPostgres) Keys(kind consts.PluginType) []string {
	if kind == consts.PluginTypeDatabase {
		return []string{postgresPlugin}
	}
	return nil
}

func (onlyPostgres) IsBuiltinEntPlugin(string, consts.PluginType) bool { return false }

func (onlyPostgres) DeprecationStatus(string, consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Supported, true
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	addr := flag.String("addr", "127.0.0.1:8200", "listen address (port 0 picks a free one)")
	auditPath := flag.String("audit-file", "", "if set, enable a file audit device writing here")
	level := flag.String("log-level", "warn", "log level")
	flag.Parse()
	token := os.Getenv("VAULT_DEV_ROOT_TOKEN_ID") // not a flag: a command line can be read by every user
	if token == "" {
		log.Fatal("VAULT_DEV_ROOT_TOKEN_ID is not set")
	}

	logger := hclog.New(&hclog.LoggerOptions{Name: "vault", Level: hclog.LevelFromString(*level), Output: os.Stderr})
	storage, err := inmem.NewInmem(nil, logger)
	must(err)
	core, err := vault.NewCore(&vault.CoreConfig{
		Physical: storage, StorageType: "inmem", Logger: logger, DisableMlock: true,
		BuiltinRegistry: onlyPostgres{},
		LogicalBackends: map[string]logical.Factory{"kv": kv.Factory, "database": database.Factory},
		CredentialBackends: map[string]logical.Factory{
			"approle": approle.Factory, "userpass": userpass.Factory,
			"jwt": jwt.Factory, "kubernetes": kubernetes.Factory,
		},
		AuditBackends: map[string]audit.Factory{"file": auditfile.Factory},
	})
	must(err)

	ctx := namespace.RootContext(context.Background())
	one := &vault.SealConfig{SecretShares: 1, SecretThreshold: 1, StoredShares: 1}
	init, err := core.Initialize(ctx, &vault.InitParams{BarrierConfig: one})
	must(err)
	key := init.SecretShares[0]
	if ok, err := core.Unseal(append([]byte(nil), key...)); err != nil || !ok { // Unseal zeroes its argument
		log.Fatalf("unseal: %v %v", ok, err)
	}
	root := init.RootToken
	write := func(path string, data map[string]any) {
		resp, err := core.HandleRequest(ctx, &logical.Request{Operation: logical.UpdateOperation, ClientToken: root, Path: path, Data: data})
		must(err)
		if resp.IsError() {
			log.Fatalf("%s: %v", path, resp.Error())
		}
	}
	write("auth/token/create", map[string]any{"id": token, "policies": []string{"root"}, "no_parent": true, "no_default_policy": true})
	write("auth/token/revoke-self", nil)
	root = token
	write("sys/mounts/secret", map[string]any{"type": "kv", "options": map[string]string{"version": "2"}})
	write("sys/mounts/kv", map[string]any{"type": "kv", "options": map[string]string{"version": "1"}})
	write("sys/mounts/database", map[string]any{"type": "database"})
	for _, method := range []string{"approle", "jwt", "kubernetes"} {
		write("sys/auth/"+method, map[string]any{"type": method})
	}
	if *auditPath != "" {
		write("sys/audit/file", map[string]any{"type": "file", "options": map[string]string{"file_path": *auditPath}})
	}

	ln, err := net.Listen("tcp", *addr)
	must(err)
	srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: vaulthttp.Handler.Handler(&vault.HandlerProperties{
		Core: core, ListenerConfig: &configutil.Listener{Type: "tcp", Address: ln.Addr().String()},
	})}
	// One line of JSON on stdout: where it listens, and what a test needs to unseal it again. Not the root token:
	// who starts this program chose it, and the line ends up in a log file.
	must(json.NewEncoder(os.Stdout).Encode(map[string]string{
		"addr": "http://" + ln.Addr().String(), "unseal_key": hex.EncodeToString(key),
	}))
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	go func() { <-stop; srv.Close() }()
	if err := srv.Serve(ln); err != http.ErrServerClosed {
		log.Fatal(err)
	}
	must(core.Shutdown())
}
