"""The four services of Sealcomb and the code that two or more of them share."""

import os

# TLS 1.3 alone between the services: grpcio has no setting for a minimum version, so below 1.3 only
# an RSA suite is allowed, which no ECDSA certificate of ours can serve. grpc reads this variable once,
# when it is imported, so it stands here, before any module that imports grpc.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"
# The services start programs and never go on in a forked copy, for which grpc would prepare at every start.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
