"""An editor's help: a language server for linker scripts (`domainbuilder lint --lsp`)."""

from __future__ import annotations
