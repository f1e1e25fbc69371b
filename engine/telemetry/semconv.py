"""Names of what stands in spans: OpenTelemetry's for generative AI where it has one, else ours with `modelyard.`.

The conventions for generative AI are in development and have moved to a repository of their own; the library's
constants for them are deprecated. So they are written down here, as of that repository in 2026.
"""

# OpenTelemetry, generative AI
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
CONVERSATION = "gen_ai.conversation.id"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_CHOICES = "gen_ai.request.choice.count"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
REQUEST_SEED = "gen_ai.request.seed"
REQUEST_STREAM = "gen_ai.request.stream"
REQUEST_TEMPERATURE = "gen_ai.request.temperature"
REQUEST_TOP_K = "gen_ai.request.top_k"
REQUEST_TOP_P = "gen_ai.request.top_p"
RESPONSE_ID = "gen_ai.response.id"
RESPONSE_MODEL = "gen_ai.response.model"
FINISH_REASONS = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"

# OpenTelemetry, general
ERROR_TYPE = "error.type"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
SERVICE_NAME = "service.name"
SERVICE_VERSION = "service.version"

CHAT = "chat"
TEXT_COMPLETION = "text_completion"
MODELYARD = "modelyard"
"""Values: operations, and the provider."""

# ours, of a request
REQUEST_ID = "modelyard.request.id"
TENANT = "modelyard.tenant"
PRIORITY = "modelyard.priority"
OUTCOME = "modelyard.outcome"
REASON = "modelyard.reason"
ATTEMPTS = "modelyard.attempts"
ATTEMPT = "modelyard.attempt"
MODEL = "modelyard.model"
REPLICA = "modelyard.replica"
TOKENS = "modelyard.tokens"

# ours, of decisions
ROUTING_STRATEGY = "modelyard.routing.strategy"
ROUTING_POOL = "modelyard.routing.pool"
ROUTING_CANDIDATES = "modelyard.routing.candidates"
ROUTING_LOADS = "modelyard.routing.loads"
ROUTING_CHOSEN = "modelyard.routing.chosen"
ROUTING_REASON = "modelyard.routing.reason"
ROUTING_ARM = "modelyard.routing.arm"
FALLBACK_BEFORE = "modelyard.fallback.before"
FALLBACK_AFTER = "modelyard.fallback.after"
CACHE_TOKENS = "modelyard.cache.tokens"  # with the tier behind a dot
CACHE_LOADED_TOKENS = "modelyard.cache.loaded_tokens"
CACHE_RECOMPUTED_TOKENS = "modelyard.cache.recomputed_tokens"

ONLY_ASKED = frozenset(
    {
        REQUEST_CHOICES,
        REQUEST_MAX_TOKENS,
        REQUEST_SEED,
        REQUEST_STREAM,
        REQUEST_TEMPERATURE,
        REQUEST_TOP_K,
        REQUEST_TOP_P,
        RESPONSE_ID,
    }
)
"""Of a request over the wire only: a simulated one has no such settings. All else is the same live and simulated."""
