// Any bytes as what an API server answers: a list gives the same items wherever its text is cut, what is read
// of a Pod keeps its promises, and objects of our own kinds never do worse than a problem.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "net/address.h"
#include "sources/json/json_view.h"
#include "sources/kubernetes/cluster_state.h"
#include "sources/kubernetes/objects.h"

namespace {

using namespace fairway::sources;
using namespace fairway::sources::kubernetes;

struct Split {
  std::vector<std::string> items;
  std::string envelope;
  bool done = false;
  bool operator==(const Split&) const = default;
};

Split Cut(std::string_view text, size_t piece) {
  Split out;
  ListSplitter splitter([&](std::string_view item) { out.items.emplace_back(item); });
  for (size_t at = 0; at < text.size(); at += piece) {
    if (!splitter.Feed(text.substr(at, piece))) break;
  }
  out.envelope = splitter.envelope();
  out.done = splitter.done();
  return out;
}

bool Inside(std::string_view part, std::string_view whole) {
  return part.data() >= whole.data() && part.data() + part.size() <= whole.data() + whole.size();
}

void CheckObject(std::string_view text) {
  for (JsonMembers members(text); members.Next();) {
    FAIRWAY_CHECK(Inside(members.key(), text) && Inside(members.value(), text) && !members.value().empty());
    for (JsonItems items(members.value()); items.Next();) FAIRWAY_CHECK(Inside(items.value(), text));
    (void)JsonString(members.value());
  }
  if (const auto pod = ReadPod(text)) {
    FAIRWAY_CHECK(!pod->name.empty());
    FAIRWAY_CHECK(!pod->eligible || fairway::net::IsIpLiteral(pod->address));
  }
  const WatchEvent event = ReadWatchEvent(text);
  FAIRWAY_CHECK(event.object.empty() || Inside(event.object, text));
  FAIRWAY_CHECK(ReadApiStatus(text).message.size() <= 500);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const Split whole = Cut(text, size + 1);
  for (const size_t piece : {1, 2, 3, 7, 64}) FAIRWAY_CHECK(Cut(text, piece) == whole);
  (void)ReadListMeta(whole.envelope);
  CheckObject(text);

  PodStore pods;
  ManifestStore manifests([](const fairway::api::Problem&) {});
  pods.BeginList();
  manifests.BeginList();
  for (const std::string& item : whole.items) {
    CheckObject(item);
    pods.Listed(item);
    manifests.Listed(item);
  }
  pods.EndList();
  manifests.EndList();
  FAIRWAY_CHECK(pods.size() <= whole.items.size() && manifests.size() <= whole.items.size());
  pods.Set(text);
  manifests.Set(text);
  fairway::api::Manifests out;
  manifests.AppendTo(out);
  const PodIndex index(pods.pods());
  for (const auto& pool : out.pools) AppendEndpoints(pool, index.Matching(pool), out.endpoints);
  return 0;
}
