"""The gateway: Envoy as the data plane, and the policy process that decides about every call."""
