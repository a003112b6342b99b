"""What all clients of the soak have in common."""


def client(bootstrap, on_error=lambda error: None, **settings):
    """Settings of librdkafka. A client comes back soon after a broker was away, and says nothing on stderr."""
    common = {
        "bootstrap.servers": bootstrap, "log_level": 0, "error_cb": on_error,
        "reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 200,
    }
    return common | {name.replace("_", "."): value for name, value in settings.items()}


def producer(bootstrap, on_error=lambda error: None, **settings):
    """Every record is acknowledged by a majority; a batch is sent again soon."""
    return client(bootstrap, on_error, acks="all", retry_backoff_ms=20, retry_backoff_max_ms=100, **settings)
