"""What of SGLang this package leans on, and whether it is still what was checked. Needs the standard library alone."""
