"""Secret references and where their values come from. A value is fetched when a step needs it, never before."""

from pipeline_assets.credentials.references import SecretReference
from pipeline_assets.credentials.secrets import Secrets

__all__ = ["SecretReference", "Secrets"]
