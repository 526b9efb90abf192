"""Problems, read from what people have, and the prompts made of them."""
