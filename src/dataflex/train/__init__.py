"""The only place that touches a Trainer."""
