"""A package, so that `from tests.reference import ...` means this folder and no installed one."""
