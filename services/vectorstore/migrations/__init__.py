"""The history of the vectorstore's schema."""
