package main

import "github.com/railsmechanic/eventsource/source/webhook"

// webhookMembers are the keys of a webhook.
func webhookMembers(c *webhook.Config) []member {
	if c.Path == "" {
		c.Path = webhook.DefaultPath
	}
	return []member{
		{"path", text{&c.Path}},
		{"channel", text{&c.Channel}},
		{"event", text{&c.Event}},
		{"id", text{&c.ID}},
		{"secret", secret{&c.Secret}},
		{"signature", choice{&c.Signature, []string{webhook.GitHub, webhook.Stripe}}},
	}
}
