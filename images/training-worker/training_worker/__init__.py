"""The training worker: takes jobs from the broker, fits their models and registers them."""
