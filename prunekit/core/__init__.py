"""Data: graphs, plans, scores, budgets, targets, timings. Never torch."""
