"""What to do with the logits of an exit: policies, temperatures, simulation; numpy only."""
