// Types of the reference that have nothing to do with a decision here, accepted so that a config runs as it
// is: what they would set up is there anyway, or is not there at all, and then a warning says so. Their
// parameters have no effect, which is said of each that is given.
#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "scheduling/plugin.h"

namespace fairway::scheduling {
namespace {

class Accepted final : public Plugin {};

struct AcceptedType {
  std::string_view type;
  std::string_view missing;  // what it would do and Fairway does not; "": nothing is missing
  std::string_view why;      // parameters have no effect
  std::array<std::string_view, 9> parameters{};
};

constexpr std::string_view kFlowControl = "requests do not wait in queues here";
constexpr std::string_view kPages = "pages are read as endpoints and --model-server-metrics-* say";

constexpr std::array kAccepted{
    AcceptedType{"metrics-data-source",
                 "",
                 kPages,
                 {"scheme", "path", "port", "insecureSkipVerify", "caCertPath", "clientCertPath",
                  "clientKeyPath", "interval"}},
    AcceptedType{"models-data-source",
                 "lists of served models are not read",
                 "they are not read",
                 {"scheme", "path", "insecureSkipVerify", "caCertPath", "clientCertPath", "clientKeyPath",
                  "interval"}},
    AcceptedType{"models-data-extractor", "lists of served models are not read", "", {}},
    AcceptedType{"dcgm-data-source",
                 "GPU metrics are not read",
                 "they are not read",
                 {"port", "useNodeAddress", "interval", "scheme", "path"}},
    AcceptedType{"dcgm-extractor", "GPU metrics are not read", "", {}},
    AcceptedType{
        "k8s-notification-source", "", "Fairway watches what it needs", {"group", "version", "kind"}},
    AcceptedType{"endpoint-notification-source", "", "", {}},
    AcceptedType{"file-discovery",
                 "endpoints come from the Kubernetes API, or from files of -f, which takes this one beside a "
                 "manifest of the pool",
                 "give it to -f",
                 {"path", "watchFile"}},
    AcceptedType{"inflight-load-producer",
                 "",
                 "the ledger counts requests and their tokens as they are",
                 {"addEstimatedOutputTokens", "outputRatio", "maxEstimatedOutputTokens",
                  "prefixMatchInfoProducerName", "syncCrossReplicaState"}},
    AcceptedType{"mm-embeddings-cache-producer",
                 "caches of embeddings are not followed",
                 "they are not followed",
                 {"cacheSizeInMBPerServer", "cacheSizeInMB"}},
    AcceptedType{"mm-embeddings-cache-scorer",
                 "caches of embeddings are not followed",
                 "they are not followed",
                 {"producerName"}},
    AcceptedType{"burst-prefix-cache-producer",
                 "requests are not held back to be grouped",
                 "they are not held",
                 {"windowDurationMs", "maxPerReplica", "blockSizeTokens", "maxPrefixTokensToMatch",
                  "minColocateBlocks", "maxBatchSize", "balanceBy"}},
    AcceptedType{"p2p-source-producer",
                 "other engines' caches are not offered as a source",
                 "it does nothing",
                 {"prefixMatchInfoProducerName", "minCachedTokenDelta", "prefillProfileName"}},
    AcceptedType{"request-attribute-reporter",
                 "its expressions (CEL) are not evaluated, and nothing is reported",
                 "nothing is reported",
                 {"attributes", "attribute", "expression", "condition"}},
    AcceptedType{"global-strict-fairness-policy", kFlowControl, "", {}},
    AcceptedType{"round-robin-fairness-policy", kFlowControl, "", {}},
    AcceptedType{"program-aware-fairness",
                 kFlowControl,
                 kFlowControl,
                 {"strategy", "lasWeightService", "lasWeightHeadWait", "lasHalfLifeSeconds",
                  "evictionTtlSeconds", "evictionSweepSeconds"}},
    AcceptedType{"fcfs-ordering-policy", kFlowControl, "", {}},
    AcceptedType{"edf-ordering-policy", kFlowControl, "", {}},
    AcceptedType{"slo-deadline-ordering-policy", kFlowControl, "", {}},
    AcceptedType{"static-usage-limit-policy", kFlowControl, kFlowControl, {"threshold"}},
    AcceptedType{"priority-holdback-policy",
                 kFlowControl,
                 kFlowControl,
                 {"shape", "domain", "minCeiling", "maxCeiling"}},
    AcceptedType{"soft-reflective-ceiling-policy", kFlowControl, "", {}},
    AcceptedType{"sheddable-eviction-filter", kFlowControl, "", {}},
    AcceptedType{"priority-then-time-eviction-order-policy", kFlowControl, "", {}},
};

// Types whose factory in the reference never looks at parameters, so that a config with any runs there.
constexpr auto kUnread = std::to_array<std::string_view>({"always-disagg-multimodal-decider",
                                                          "always-disagg-pd-decider",
                                                          "anthropic-parser",
                                                          "dcgm-extractor",
                                                          "decode-filter",
                                                          "destination-endpoint-served-verifier",
                                                          "edf-ordering-policy",
                                                          "encode-filter",
                                                          "endpoint-notification-source",
                                                          "fcfs-ordering-policy",
                                                          "global-strict-fairness-policy",
                                                          "header-based-testing-filter",
                                                          "kv-cache-utilization-scorer",
                                                          "lora-affinity-scorer",
                                                          "models-data-extractor",
                                                          "openai-parser",
                                                          "passthrough-parser",
                                                          "prefill-filter",
                                                          "priority-then-time-eviction-order-policy",
                                                          "queue-scorer",
                                                          "round-robin-fairness-policy",
                                                          "running-requests-size-scorer",
                                                          "sglanghttp-parser",
                                                          "sheddable-eviction-filter",
                                                          "single-profile-handler",
                                                          "slo-deadline-ordering-policy",
                                                          "vertexai-parser",
                                                          "vllmgrpc-parser",
                                                          "vllmhttp-parser"});

struct LeftOutType {
  std::string_view type;
  std::string_view why;
};
constexpr std::string_view kPredictor = "predicted latency needs a service beside the picker";
constexpr std::string_view kObserved =
    "first tokens seen so far are learned as a rate, which time-to-first-token-scorer goes by";
constexpr std::string_view kMultiCluster = "endpoints of other clusters are not known";
constexpr std::array kLeftOut{
    LeftOutType{"predicted-latency-producer", kPredictor},
    LeftOutType{"latency-scorer", kPredictor},
    LeftOutType{"latency-slo-admitter", kPredictor},
    LeftOutType{"slo-headroom-tier-filter", kPredictor},
    LeftOutType{"latency-observer-producer", kObserved},
    LeftOutType{"latency-observation-scorer", kObserved},
    LeftOutType{"multicluster-queue-scorer", kMultiCluster},
    LeftOutType{"multicluster-kv-cache-utilization-scorer", kMultiCluster},
    LeftOutType{"multicluster-prefix-cache-scorer", kMultiCluster},
    LeftOutType{"multicluster-session-affinity-filter", kMultiCluster},
    LeftOutType{"multicluster-approx-prefix-cache-producer", kMultiCluster},
    LeftOutType{"multicluster-metrics-data-source", kMultiCluster},
    LeftOutType{"multicluster-metrics-extractor", kMultiCluster},
    LeftOutType{"multicluster-file-discovery", kMultiCluster},
    LeftOutType{"disaggregatedset-rollout-screener", "rollouts of disaggregated sets are not followed"},
};

}  // namespace

std::unique_ptr<Plugin> MakeAccepted(Build& build) {
  const auto accepted = std::find_if(kAccepted.begin(), kAccepted.end(),
                                     [&](const AcceptedType& type) { return type.type == build.type(); });
  if (!accepted->missing.empty()) build.Warn("", "has no effect: " + std::string(accepted->missing));
  for (const std::string_view parameter : accepted->parameters) {
    if (!parameter.empty()) build.NoEffect({parameter}, accepted->why);
  }
  return std::make_unique<Accepted>();
}

bool LeavesParametersUnread(std::string_view type) {
  return std::find(kUnread.begin(), kUnread.end(), type) != kUnread.end();
}

std::string_view WhyLeftOut(std::string_view type) {
  const auto found =
      std::find_if(kLeftOut.begin(), kLeftOut.end(), [&](const LeftOutType& t) { return t.type == type; });
  return found == kLeftOut.end() ? std::string_view() : found->why;
}

}  // namespace fairway::scheduling
