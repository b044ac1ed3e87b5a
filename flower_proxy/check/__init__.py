"""The doctor, ``flower-proxy check``: requests to a deployment, checks of the answers, findings with remedies."""
