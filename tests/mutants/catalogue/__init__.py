"""The changes: conditions and locks of statements, comparisons, and orders of awaits that safety
rests on."""

from tests.mutants.catalogue import cluster, tokens, workers

MUTANTS = (*workers.MUTANTS, *tokens.MUTANTS, *cluster.MUTANTS)
