"""A server of recurrent language models over gRPC, with sessions that carry on."""

import os

# gRPC's core writes lines of its own to the log, and reads this when it is first imported. What
# it has to say comes as errors, too.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
