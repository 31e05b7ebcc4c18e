"""What each account used by the day, and the quotas that bound it."""
