"""One attempt of one run: from its first line of code to the append that ends it."""
