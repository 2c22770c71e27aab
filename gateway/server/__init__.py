"""The gateway as a service over HTTP. See README.md in this folder."""
