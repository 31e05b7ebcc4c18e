"""Text out of documents, by a parser that is taken to be hostile.

`process` is the service's side; `worker`, `sandbox`, `seccomp` and `parse` run in the child alone;
`formats` and `wire` are what both sides share.
"""
