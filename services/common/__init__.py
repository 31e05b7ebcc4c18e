"""Code that at least two services share; nothing here knows any one of them."""
