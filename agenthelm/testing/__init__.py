"""Test doubles and contract tests for people who build on AgentHelm."""
