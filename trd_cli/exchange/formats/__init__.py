"""One file a layout of exported rows."""
