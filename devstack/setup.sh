#!/usr/bin/env bash
# Everything that `make demo` and `make test` need: a JDK, uv, the locked .venv, Spark's JARs, and PostgreSQL.
# With --test also a browser for the end-to-end test. Run again, it does what is missing and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '==> %s\n' "$*"; }
stop() { printf 'setup: %s\n' "$*" >&2; exit 1; }
root_on_debian() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
apt_install() {
  step "installing $* (apt-get)"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}
java_version() {
  { "${JAVA_HOME:+$JAVA_HOME/bin/}java" -version 2>&1 || true; } | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1
}

case "$(java_version)" in
  17|21) ;;
  *) if root_on_debian; then apt_install openjdk-17-jre-headless
     else stop "Java 17 or 21 is needed: install it (Debian: openjdk-17-jre-headless, macOS: brew install openjdk@17) or set JAVA_HOME"
     fi ;;
esac

python=""
for candidate in python3 python3.13 python3.12 python3.11; do
  if command -v "$candidate" >/dev/null \
     && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'; then
    # The interpreter itself: uv would take the shim of pyenv for another one, and make the environment anew each time.
    python=$("$candidate" -c 'import sys; print(sys._base_executable)'); break
  fi
done
[ -n "$python" ] || stop "Python 3.11, 3.12 or 3.13 is needed: install one and put it on the PATH"

uv=$(command -v uv || true)
if [ -z "$uv" ]; then
  uv=.uv/bin/uv
  if [ ! -x "$uv" ]; then
    step "installing uv into .uv"
    if ! "$python" -m venv .uv >/dev/null 2>&1; then
      root_on_debian && apt_install python3-venv || stop "python3 -m venv does not work: install your system's python3-venv"
      "$python" -m venv .uv
    fi
    .uv/bin/pip install --quiet uv==0.13.9
  fi
fi

# Compiled here: where PYTHONDONTWRITEBYTECODE is set, each process would compile all that it imports, for seconds.
step "Python packages into .venv (locked)"
"$uv" sync --locked --compile-bytecode --python "$python"
.venv/bin/python -m compileall -q pipeline_assets devstack
step "Spark's JARs"
.venv/bin/python -c 'from pipeline_assets.spark.jars import resolve_jars; print(f"{len(resolve_jars())} JARs are in place")'
if ! .venv/bin/python -c 'from pipeline_assets.spark.class_archive import archive_file as f; raise SystemExit(not f().exists())'; then
  step "Spark's classes, prepared for this Java so that runs start faster (once)"
  .venv/bin/pipeline-assets archive-classes 2>/dev/null || step "this Java can't: runs start as they would without"
fi

missing() { .venv/bin/python -c "from devstack.$1 import $2; print($2().missing() or '')"; }

advice=$(missing postgres Postgres)
if [ -n "$advice" ]; then
  # Debian starts a server of its own with it, on 5432: the demo and the tests take ports from 15000 on.
  if root_on_debian; then apt_install postgresql
  else stop "PostgreSQL is needed by the demo and the tests: $advice"
  fi
fi

[ "${1:-}" = --test ] || exit 0

if ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null; then
  if root_on_debian; then apt_install chromium
  else step "a browser for the end-to-end test"; .venv/bin/playwright install chromium
  fi
fi
for program in prometheus prometheus-pushgateway; do
  command -v "$program" >/dev/null && continue
  if root_on_debian; then apt_install "$program"
  else stop "$program is needed by the tests: install it (Debian: $program) and put it on the PATH"
  fi
done
advice=$(missing vault Vault)
[ -z "$advice" ] || stop "Vault is needed by the tests: $advice"
