package config

//go:generate go run ./internal/sample cephmirror.toml
