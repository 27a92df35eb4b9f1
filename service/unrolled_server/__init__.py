"""A server of recurrent language models over gRPC, with sessions that carry on."""
