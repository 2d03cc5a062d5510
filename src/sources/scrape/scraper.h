// Keeps each endpoint's live cell up to date from its metrics page.
//
//   auto scraper = Scraper::Create(options, loop, fleet, clock, log, registry);   // on the control loop
//
// Endpoints come and go with the fleet's snapshots. An endpoint whose page fails keeps its last values and
// its reservations, so it stays routable; it is told once in the log when that begins and once when it ends,
// and counted in the metrics:
//
//   fairway_scrapes_total{pool}                     pages taken over
//   fairway_scrape_errors_total{pool,kind}          timeout, connect, closed, protocol, too_large, status,
//   content, options, tls llm_d_epp_datalayer_poll_errors_total{source_type}                      the same
//   errors under the reference's name llm_d_epp_datalayer_extract_errors_total{source_type,extractor_type}
//   pages with values missing or not usable fairway_scrape_age_seconds{pool}                age of the oldest
//   last good page among the pool's endpoints fairway_scrape_failing_endpoints{pool}          endpoints whose
//   last page failed fairway_unscraped_endpoints{pool}               endpoints that never gave a page
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api/engine_pages.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/result.h"
#include "fleet/fleet.h"
#include "net/loop.h"
#include "sources/scrape/metrics_page.h"

namespace fairway::sources::scrape {

// Whether the certificates of https pages are verified.
enum class Verification { kWithCaFile, kOn, kOff };

struct ScraperOptions {
  // Of one endpoint; at least 1 ms. A page costs the engine's API process milliseconds, and every picker
  // reads every engine. Since own requests are known without pages, replays with 1 to 16 pickers find no
  // difference above 5 % between a page each 50 ms and one each 400 ms; 16 pickers then read an engine 40
  // times a second.
  base::Nanos interval = kDefaultInterval;
  static constexpr base::Nanos kDefaultInterval = 400 * base::kMillisecond;
  // So many turns in a row are left out for an endpoint that has no request.
  uint32_t idle_turns = 0;
  // None: as often as placement needs.
  void SetInterval(std::optional<base::Nanos> given) {
    interval = given.value_or(kDefaultInterval);
    idle_turns = given ? 0 : 2;
  }
  base::Nanos timeout = base::kSecond;  // of one page, from connecting to its last byte
  size_t max_page = 8u << 20;           // bytes
  // Of all pages, where an endpoint does not say its own: its engine's path, http and its own port.
  PageDefaults page;
  // Of https pages: who signed their certificates ("" and verified: the system's authorities) and for whom
  // they must be ("": the endpoint's address).
  std::string ca_file;
  std::string server_name;
  Verification verification = Verification::kWithCaFile;
  std::string default_engine = "vllm";  // of endpoints without a label
  // Labels that name the engine; the first one that is there counts. The second is the reference's older
  // name.
  std::vector<std::string> engine_labels = {"llm-d.ai/engine-type",
                                            "inference.networking.k8s.io/engine-type"};
  std::vector<EngineSpec> engines;  // empty: BuiltinEngines()
  // What a pool's config says of its pages, by the pool's key; null: nothing. Called on the control loop, for
  // pools that are new and after PagesChanged.
  std::function<std::shared_ptr<const api::EnginePages>(const std::string& pool)> pages;
};

// Owned by the control loop: created, used and destroyed on its thread (or while that is stopped), before the
// fleet. The metrics may be rendered on any thread.
class Scraper {
 public:
  // Begins at once. Fails on options that can not be: an unknown default engine, a path without '/', an
  // interval below 1 ms, a CA file that cannot be read.
  static base::Result<std::unique_ptr<Scraper>> Create(ScraperOptions options, net::Loop& loop,
                                                       fleet::Fleet& fleet, const base::Clock& clock,
                                                       const base::Log& log, base::Registry& registry);
  ~Scraper();
  Scraper(const Scraper&) = delete;
  Scraper& operator=(const Scraper&) = delete;

  // Configs were swapped. On the control loop.
  void PagesChanged();

  size_t endpoints() const;  // being scraped now

 private:
  struct Impl;
  explicit Scraper(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace fairway::sources::scrape
