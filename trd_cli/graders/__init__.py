"""Turn a response and a reference into a verdict, in worker processes that can be killed."""
