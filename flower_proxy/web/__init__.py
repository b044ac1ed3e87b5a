"""What answers a request: Flower's handlers, and what is mixed into each of them."""
