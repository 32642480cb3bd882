"""Changes of lines that safety rests on, each with the tests that must go red: see
`tests.mutants.__main__`."""
