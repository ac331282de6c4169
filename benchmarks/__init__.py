"""One script a figure; each prints what it measured and writes it as JSON when asked."""
