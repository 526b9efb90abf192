"""Rollouts drawn over HTTP: servers, requests, answers that can be trusted, the journal."""
