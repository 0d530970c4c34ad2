"""What ways to train are worth on this machine: rungs, a loop whose every optimisation is a switch, trials."""
