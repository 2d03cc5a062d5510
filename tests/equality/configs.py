"""EndpointPickerConfigs drawn at random from the plugins that decide by what is seen alone, and what their requests say beside."""

SCORERS = [
    ("queue-scorer", {}), ("kv-cache-utilization-scorer", {}), ("running-requests-size-scorer", {}), ("lora-affinity-scorer", {}),
    ("load-aware-scorer", {"threshold": 40}), ("active-request-scorer", {}), ("token-load-scorer", {"queueThresholdTokens": 5000}),
    ("prefix-cache-scorer", {}), ("prefix-cache-scorer", {"matchLengthWeight": 0.5, "matchLengthScaleTokens": 500}),
    ("no-hit-lru-scorer", {}), ("lmetric-scorer", {}), ("time-to-first-token-scorer", {}), ("context-length-aware", {}),
    ("session-affinity-scorer", {"strategy": "session_id"}), ("header-label-affinity-scorer", {"headerName": "x-app", "labelKey": "app"}),
    ("endpoint-attribute-scorer", {"attributeKey": "queue", "algorithm": {"type": "linear_lower_is_better"}}),
]
FILTERS = [
    ("label-selector-filter", {"matchLabels": {"app": "server"}}), ("decode-filter", {}),
    ("utilization-filter", {"conditions": [{"metric": "waiting-queue", "maxValue": 40}], "fallbackOnEmpty": True}),
    ("utilization-filter", {"conditions": [{"metric": "kv-cache-utilization", "maxValue": 0.9}]}),
    ("prefix-cache-affinity-filter", {"explorationProbability": 0.1}), ("session-affinity-filter", {"strategy": "session_id"}),
    ("utilization-detector", {"queueDepthThreshold": 20}), ("lora-affinity-filter", {"exploration": 0.2}),
    ("endpoint-attribute-filter", {"attribute": "kv-usage", "fallbackOnEmpty": True, "algorithm": {
        "type": "threshold", "threshold": {"operator": "LessThan", "value": 0.7}}}),
]
PICKERS = ["max-score-picker", "random-picker", "weighted-random-picker"]
ADMITTERS = [("probabilistic-admitter", {"k": 3, "power": 1})]
HANDLERS = [
    ("disagg-profile-handler", {"deciders": {"prefill": "always-disagg-pd-decider"}}, ["decode", "prefill"]),
    ("disagg-profile-handler", {"deciders": {"prefill": "prefix-based-pd-decider", "encode": "always-disagg-multimodal-decider"}},
     ["decode", "prefill", "encode"]),
    ("disagg-profile-handler", {"stageOrder": "prefill-first"}, ["decode", "prefill"]),
    ("header-profile-handler", {"headerName": "x-profile", "defaultProfile": "one"}, ["one", "two"]),
]
PARSERS = ["anthropic-parser", "vllmhttp-parser", "sglanghttp-parser", "passthrough-parser"]
DECIDERS = [("always-disagg-pd-decider", {}), ("prefix-based-pd-decider", {"nonCachedTokens": 20}), ("always-disagg-multimodal-decider", {})]


def random_config(rng):
    # How much other pickers are believed to have sent depends on which answers have ended by then.
    plugins = [{"type": "approx-prefix-cache-producer", "parameters": {"trustInOthers": 0}}]

    def add(type_, parameters):
        name = f"{type_}-{len(plugins)}"
        plugins.append({"type": type_, "name": name, **({"parameters": parameters} if parameters else {})})
        return name

    def profile(name):
        steps = [{"pluginRef": add(*drawn)} for drawn in rng.sample(FILTERS, rng.randrange(0, 3))]
        steps += [{"pluginRef": add(*drawn), "weight": rng.choice([0.5, 1, 2, 3.7])}
                  for drawn in rng.sample(SCORERS, rng.randrange(0, 5))]
        picker = rng.choice(PICKERS), rng.choice([{}, {"maxNumOfEndpoints": rng.randrange(1, 5)}])
        return {"name": name, "plugins": [*steps, {"pluginRef": add(*picker)}]}

    names = ["default"]
    if rng.random() < 0.5:
        handler, parameters, names = rng.choice(HANDLERS)
        plugins += [{"type": type_, **({"parameters": more} if more else {})} for type_, more in DECIDERS]
        add(handler, parameters)
    profiles = [profile(name) for name in names]
    if rng.random() < 0.3:
        add(*rng.choice(ADMITTERS))
    config = {"apiVersion": "llm-d.ai/v1", "kind": "EndpointPickerConfig", "plugins": plugins, "schedulingProfiles": profiles}
    if rng.random() < 0.3:
        listed = rng.sample(PARSERS, rng.randrange(1, len(PARSERS)))
        config["requestHandler"] = {"parsers": [{"pluginRef": name} for name in ["openai-parser", *listed]]}
    return config


def with_sessions(requests, rng):
    """What plugins read in requests beside what all have."""
    for request in requests:
        for name, values in (("x-session-id", [f"s{n}" for n in range(20)]), ("x-app", ["server", "other"]), ("x-profile", ["one", "two"])):
            if rng.random() < 0.5:
                request.headers.append((name, rng.choice(values)))
        if rng.random() < 0.05:
            request.headers.append(("prefer", "if-available"))
    return requests
