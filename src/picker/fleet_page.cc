#include "picker/fleet_page.h"

#include <utility>

#include "base/strings.h"

namespace fairway::picker {
namespace {

constexpr size_t kPiece = 64u << 10;

void AppendEndpoint(std::string& out, const fleet::Endpoint& endpoint, const fleet::PoolSnapshot& pool,
                    base::Nanos now) {
  const fleet::EndpointCell& cell = *endpoint.cell;
  out += "{\"name\":" + base::JsonString(endpoint.name) +
         ",\"address\":" + base::JsonString(endpoint.address) +
         ",\"waiting\":" + std::to_string(cell.waiting()) + ",\"running\":" + std::to_string(cell.running()) +
         ",\"kvUsage\":" + std::to_string(cell.kv_usage()) + ",\"inflight\":" + std::to_string(cell.own()) +
         ",\"others\":" + std::to_string(cell.others()) + ",\"workMs\":" + std::to_string(cell.work_ms(now)) +
         ",\"msPerToken\":" + std::to_string(cell.ms_per_token()) + ",\"scrapeAgeMs\":" +
         (cell.scraped_at() == 0 ? "null" : std::to_string((now - cell.scraped_at()) / base::kMillisecond)) +
         ",\"refusing\":" + (cell.refusing() ? "true" : "false") + ",\"adapters\":[";
  for (const auto& [name, id] : pool.adapters) {
    if (!cell.adapter_running(id)) continue;
    if (out.back() != '[') out += ',';
    base::AppendJsonString(out, name);
  }
  out += "]}";
}

// Where in the snapshot the next piece begins.
class Pages {
 public:
  Pages(std::shared_ptr<const fleet::Snapshot> snapshot, base::Nanos now)
      : snapshot_(std::move(snapshot)), now_(now), pool_(snapshot_->pools.begin()) {}

  std::string Next() {
    std::string out;
    if (ended_) return out;
    if (!std::exchange(began_, true)) {
      out += "{\"version\":" + std::to_string(snapshot_->version) + ",\"pools\":[";
    }
    while (pool_ != snapshot_->pools.end()) {
      if (out.size() >= kPiece) return out;
      AppendPool(out, *pool_->second, pool_->first);
    }
    ended_ = true;
    return out + "]}\n";
  }

 private:
  // As much of it as fits.
  void AppendPool(std::string& out, const fleet::PoolSnapshot& pool, const std::string& key) {
    if (!std::exchange(in_pool_, true)) {
      if (pool_ != snapshot_->pools.begin()) out += ',';
      out += "{\"name\":" + base::JsonString(key) + ",\"models\":[";
      for (const auto& [name, model] : pool.models) {
        if (out.back() != '[') out += ',';
        base::AppendJsonString(out, name);
      }
      out += "],\"endpoints\":[";
    }
    for (; endpoint_ < pool.endpoints.size(); ++endpoint_) {
      if (out.size() >= kPiece) return;
      if (endpoint_ > 0) out += ',';
      AppendEndpoint(out, pool.endpoints[endpoint_], pool, now_);
    }
    out += "]}";
    ++pool_;
    endpoint_ = 0;
    in_pool_ = false;
  }

  const std::shared_ptr<const fleet::Snapshot> snapshot_;
  const base::Nanos now_;
  decltype(fleet::Snapshot::pools)::const_iterator pool_;
  size_t endpoint_ = 0;
  bool in_pool_ = false;
  bool began_ = false;
  bool ended_ = false;
};

}  // namespace

std::function<std::string()> FleetPage(std::shared_ptr<const fleet::Snapshot> snapshot, base::Nanos now) {
  return [pages = std::make_shared<Pages>(std::move(snapshot), now)] { return pages->Next(); };
}

}  // namespace fairway::picker
