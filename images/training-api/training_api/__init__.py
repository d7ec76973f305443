"""The training API: takes series to learn from, and tells what became of them."""
