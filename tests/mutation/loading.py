"""Loads a mutant in place of its module, in this process and nowhere else: no file is changed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType

from tests.mutation.mutating import Mutant


class _MutantLoader(SourceFileLoader):
    def __init__(self, mutant: Mutant, path: str) -> None:
        super().__init__(mutant.module, path)
        self.mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        # Not by `source_to_code`: that would write the mutant into the module's own cache file.
        return compile(self.mutant.tree(), self.get_filename(fullname), "exec", dont_inherit=True)


class _MutantFinder(MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.mutant.module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec
        assert spec.origin
        spec.loader = _MutantLoader(self.mutant, spec.origin)
        return spec


def plant(mutant: Mutant) -> None:
    """Let the next import of the mutant's module give the mutant. Nothing of the package may be imported before."""
    assert not any(name.startswith("prefect_claim_dispatch") for name in sys.modules), "the package is here already"
    sys.meta_path.insert(0, _MutantFinder(mutant))


def is_loaded(mutant: Mutant) -> bool:
    """Whether what this process runs is the mutant."""
    module = sys.modules.get(mutant.module)
    return module is not None and isinstance(module.__loader__, _MutantLoader)
