"""One reader per benchmark, of files as their makers published them."""
