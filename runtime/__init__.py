"""From a bundle to predictions: engines, policies at work, deadlines. No torch."""
