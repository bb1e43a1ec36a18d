"""The only sockets: connecting, TLS by pin or CA, accepting."""
