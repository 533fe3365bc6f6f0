package sandbox

// Canary is in every opaque credential that a sandbox mints, so that tests find
// one that leaks. Azure's are JWTs, which show by their form.
const Canary = "SandboxCanary"
