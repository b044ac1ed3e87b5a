"""Diagnosis of a deployment: requests, checks of the responses, findings with remedies."""
