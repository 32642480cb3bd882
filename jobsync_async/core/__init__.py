"""The rules: who may act, who leads, who is dead, who gets which token. Pure: time is an argument,
and there is no I/O."""
