"""The whole way: profile, prune, slim, export, measure, report; closes the measured loop."""
