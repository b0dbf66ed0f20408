"""What is shown of the server while it runs: metrics, traces, the log."""
