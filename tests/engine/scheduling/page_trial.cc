#include "tests/engine/scheduling/page_trial.h"

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <string_view>
#include <utility>

namespace sluice::engine {
namespace {

constexpr size_t kMostLoose = 6;
// Callers' names for the letters that texts begin with.
constexpr std::array<const char*, 3> kDomains = {"", "salt", "another tenant, and its salt"};

}  // namespace

void PageTrial::Count::Add(const Count& other) {
  operations += other.operations;
  lookups += other.lookups;
  found += other.found;
  allocated += other.allocated;
  refused += other.refused;
  published += other.published;
  replaced += other.replaced;
  forks += other.forks;
  copies += other.copies;
  bypassed += other.bypassed;
  other_salts += other.other_salts;
  evicted += other.evicted;
  flushes += other.flushes;
}

const char* PageTrial::Count::Missing() const {
  const std::pair<const char*, int64_t> kinds[] = {
      {"no page was found", found},
      {"no allocation was refused", refused},
      {"no page was published", published},
      {"no page was replaced", replaced},
      {"no sequence was forked", forks},
      {"no page was copied", copies},
      {"nothing bypassed the cache", bypassed},
      {"no lookup missed what another domain has", other_salts},
      {"no page was evicted", evicted},
      {"nothing was flushed", flushes}};
  for (const auto& [what, count] : kinds) {
    if (count == 0) return what;
  }
  return nullptr;
}

PageTrial::Shape::Shape(sim::Random& random)
    : num_pages(random.OneIn(4) ? random.Between(1, 6) : random.Between(4, 40)),
      num_users(random.Between(1, 8)),
      most_letters(random.Between(1, 8)),
      num_letters(random.Between(1, 3)),
      num_domains(random.Between(1, static_cast<int>(kDomains.size()))),
      hash_bits(random.OneIn(3) ? 64 : 2 * random.Between(0, 1)),
      differs_at(random.Between(0, kPageTokens - 1)),
      enabled(!random.OneIn(10)),
      key{random.Next(), random.Next(), random.Next()} {}

PageTrial::PageTrial(uint64_t seed, bool trace)
    : random_(seed),
      shape_(random_),
      trace_(trace),
      pool_(shape_.num_pages + 1, {.enabled = shape_.enabled,
                                   .hash = KeyedHash(shape_.key),
                                   .hash_bits = shape_.hash_bits}),
      naive_(shape_.num_pages) {
  for (int i = 0; i < shape_.num_users; ++i) users_.push_back(std::make_unique<User>(&pool_));
  // Two pages differ in one token or two, wherever they are.
  for (int letter = 0; letter < shape_.num_letters; ++letter) {
    std::array<TokenId, kPageTokens> tokens;
    tokens.fill(7);
    if (letter > 0) tokens[static_cast<size_t>((shape_.differs_at + 5 * letter) % kPageTokens)] = 8;
    tokens_.push_back(tokens);
  }
}

std::optional<std::string> PageTrial::Run(int64_t operations) {
  for (int64_t i = 0; i < operations && fault_.empty(); ++i) Step();
  if (fault_.empty()) CloseAll();
  if (fault_.empty()) return std::nullopt;
  return "operation " + std::to_string(count_.operations) + " (" + operation_ + "): " + fault_;
}

void PageTrial::Step() {
  ++count_.operations;
  operation_.clear();
  if (random_.OneIn(8)) {
    StepOfPool();
  } else {
    StepOfUser(*users_[static_cast<size_t>(random_.Below(shape_.num_users))]);
  }
  if (fault_.empty()) CheckAll();
  if (trace_) {
    std::printf("  %8lld %s\n", static_cast<long long>(count_.operations), operation_.c_str());
  }
}

void PageTrial::StepOfUser(User& user) {
  if (!user.open) {
    const User& from = *users_[static_cast<size_t>(random_.Below(shape_.num_users))];
    if (random_.OneIn(5)) {
      SetText(user, DrawText(""));
      LookUp(user, /*names=*/false);
    } else if (from.open && !random_.OneIn(3)) {
      Fork(user, from);
    } else {
      Open(user);
    }
  } else if (random_.OneIn(5)) {
    Close(user);
  } else if (random_.OneIn(2)) {
    Cover(user, random_.Between(0, kPageTokens * (static_cast<int>(user.text.size()) - 1)));
  } else {
    Publish(user);
  }
}

void PageTrial::StepOfPool() {
  if (random_.OneIn(20)) {
    Flush();
  } else if (random_.OneIn(3)) {
    GiveBack(replaced_);
  } else if (random_.OneIn(3)) {
    Overdraw();
  } else if (random_.OneIn(2) || loose_.size() >= kMostLoose) {
    GiveBack(loose_);
  } else if (random_.OneIn(2) && !loose_.empty()) {
    const PageId page = loose_[static_cast<size_t>(random_.Below(std::ssize(loose_)))];
    operation_ = "share";
    pool_.Share(page);
    naive_.Take(page.value);
    loose_.push_back(page);
  } else {
    Allocate(random_.Between(0, 3));
  }
}

// ---------------------------------------------------------------- sequences

std::string PageTrial::DrawText(std::string beginning) {
  if (beginning.empty()) beginning += static_cast<char>('A' + random_.Below(shape_.num_domains));
  const int letters = static_cast<int>(beginning.size()) - 1;
  for (int more = random_.Between(letters == 0, shape_.most_letters - letters); more > 0; --more)
    beginning += static_cast<char>('a' + random_.Below(shape_.num_letters));
  return beginning;
}

void PageTrial::SetText(User& user, std::string text) {
  user.text = std::move(text);
  user.hashes.clear();
  const std::string_view domain = kDomains[static_cast<size_t>(user.text[0] - 'A')];
  for (size_t i = 1; i < user.text.size(); ++i) {
    const std::span<const TokenId> tokens = tokens_[static_cast<size_t>(user.text[i] - 'a')];
    user.hashes.push_back(i == 1 ? pool_.cache().Hash(domain, tokens)
                                 : pool_.cache().Hash(user.hashes.back(), tokens));
  }
}

PrefixKey PageTrial::KeyOf(const User& user, int index, PageId parent) const {
  const auto at = static_cast<size_t>(index);
  return {parent, kDomains[static_cast<size_t>(user.text[0] - 'A')],
          tokens_[static_cast<size_t>(user.text[at + 1] - 'a')], user.hashes[at]};
}

void PageTrial::Open(User& user) {
  operation_ = "open";
  // Half the time the text that it had before, as one that was preempted has.
  if (user.text.empty() || random_.OneIn(2)) SetText(user, DrawText(""));
  user.open = true;
  user.bypass = random_.OneIn(6);
  user.positions = 0;
  user.num_cached = 0;
  count_.bypassed += user.bypass;
  if (user.bypass || !pool_.cache().enabled()) return;
  LookUp(user, /*names=*/true);
  user.num_cached = user.table.num_pages();
  user.positions = user.num_cached * kPageTokens;
}

void PageTrial::LookUp(User& user, bool names) {
  operation_ += (operation_.empty() ? "look up " : " ") + user.text;
  ++count_.lookups;
  PageId parent{0};
  for (int index = 0; index < std::ssize(user.hashes); ++index) {
    const std::string text = user.text.substr(0, static_cast<size_t>(index) + 2);
    const PrefixKey key = KeyOf(user, index, parent);
    if (!SameHashes(text, key.hash)) return;
    const int expected = naive_.Find(text);
    const PageId found = pool_.Find(key).value_or(PageId{0});
    if (!Same("page found", found.value, expected)) return;
    if (expected == 0) {
      for (char other = 'A'; other < 'A' + shape_.num_domains; ++other)
        count_.other_salts += naive_.Find(other + text.substr(1)) != 0;
      return;
    }
    ++count_.found;
    parent = found;
    if (!names) continue;
    user.table.Share(found);
    naive_.Take(expected);
  }
}

// The text of `from`, its pages as far as they may be named, then a text and a page of its own.
void PageTrial::Fork(User& user, const User& from) {
  operation_ = "fork " + from.text;
  const bool keeps_out = from.bypass || !pool_.cache().enabled();
  const int pages = random_.Between(0, keeps_out ? from.positions / kPageTokens : from.num_cached);
  SetText(user, DrawText(from.text.substr(0, static_cast<size_t>(pages) + 1)));
  operation_ += " to " + user.text;
  user.open = true;
  user.bypass = from.bypass;
  count_.forks += pages > 0;
  for (int index = 0; index < pages; ++index) {
    user.table.Share(from.table.page(index));
    naive_.Take(from.table.page(index).value);
  }
  user.num_cached = keeps_out ? 0 : pages;
  user.positions = pages * kPageTokens;
  if (pages == static_cast<int>(user.text.size()) - 1 || pages == from.table.num_pages()) return;
  Cover(user, user.positions + random_.Between(1, kPageTokens));
  if (user.table.num_pages() == pages || !fault_.empty()) return;
  // What it writes is nobody else's.
  const int copy = user.table.page(pages).value;
  Same("references of a copy", pool_.references(PageId{copy}), 1, copy);
  Same("a copy is cached", pool_.cache().Holds(PageId{copy}), false, copy);
  ++count_.copies;
}

void PageTrial::Cover(User& user, int positions) {
  operation_ += (operation_.empty() ? "cover " : ", ") + std::to_string(positions);
  const int before = user.table.num_pages();
  const int missing = std::max(0, (positions + kPageTokens - 1) / kPageTokens - before);
  const bool fits = naive_.MakeRoom(missing, count_.evicted);
  if (!Same("covered", user.table.Cover(positions), fits)) return;
  if (!Same("pages of a table", user.table.num_pages(), before + (fits ? missing : 0))) return;
  if (!Same("covers", user.table.Covers(positions), fits)) return;
  count_.refused += !fits;
  if (!fits) return;
  user.positions = std::max(user.positions, positions);
  for (int index = before; index < before + missing; ++index) {
    if (!Take(user.table.page(index))) return;
  }
}

void PageTrial::Publish(User& user) {
  const int full = user.positions / kPageTokens;
  operation_ = "publish " + user.text;
  if (user.bypass || !pool_.cache().enabled() || user.num_cached == full) return;
  const int end = random_.Between(user.num_cached + 1, full);
  operation_ += " up to page " + std::to_string(end);
  for (; user.num_cached < end; ++user.num_cached) {
    const int index = user.num_cached;
    const PageId own = user.table.page(index);
    const PageId parent = index == 0 ? PageId{0} : user.table.page(index - 1);
    const PrefixKey key = KeyOf(user, index, parent);
    const std::string text = user.text.substr(0, static_cast<size_t>(index) + 2);
    if (!SameHashes(text, key.hash)) return;
    const int expected = naive_.Publish(text, key.hash, own.value);
    const PageId cached = pool_.Publish(key, own);
    if (!Same("page published", cached.value, expected)) return;
    ++count_.published;
    if (cached == own) continue;
    ++count_.replaced;
    if (!Same("page replaced", user.table.Replace(index, cached).value, own.value)) return;
    naive_.Take(expected);
    replaced_.push_back(own);
  }
}

void PageTrial::Close(User& user) {
  operation_ = "close " + user.text;
  for (int index = user.table.num_pages() - 1; index >= 0; --index)
    naive_.Drop(user.table.page(index).value);
  user.table.Clear();
  user.open = false;
  Same("pages of a closed table", user.table.num_pages(), 0);
}

// ---------------------------------------------------------------- the pool itself

void PageTrial::Allocate(int count) {
  operation_ = "allocate " + std::to_string(count);
  const size_t before = loose_.size();
  const bool fits = naive_.MakeRoom(count, count_.evicted);
  if (!Same("allocated", pool_.Allocate(count, loose_), fits)) return;
  const size_t after = before + static_cast<size_t>(fits ? count : 0);
  if (!Same("pages allocated", std::ssize(loose_), static_cast<int64_t>(after))) return;
  count_.refused += !fits;
  for (size_t i = before; i < after; ++i) {
    if (!Take(loose_[i])) return;
  }
}

void PageTrial::Overdraw() {
  const int count = naive_.num_free() + naive_.num_cached() + random_.Between(1, 3);
  operation_ = "allocate " + std::to_string(count);
  std::vector<PageId> pages;
  ++count_.refused;
  Same("allocated", pool_.Allocate(count, pages), false);
  Same("pages allocated", std::ssize(pages), 0);
}

void PageTrial::GiveBack(std::vector<PageId>& pages) {
  operation_ = "give back";
  if (pages.empty()) return;
  const auto place = pages.begin() + random_.Below(std::ssize(pages));
  const PageId page = *place;
  pages.erase(place);
  naive_.Drop(page.value);
  pool_.Release(page);
}

void PageTrial::Flush() {
  operation_ = "flush";
  ++count_.flushes;
  pool_.Flush();
  naive_.Flush(count_.evicted);
}

void PageTrial::CloseAll() {
  for (const auto& user : users_) Close(*user);
  while (!loose_.empty()) GiveBack(loose_);
  while (!replaced_.empty()) GiveBack(replaced_);
  operation_ = "close all";
  CheckAll();
  Same("pages available at the end", pool_.num_available(), shape_.num_pages);
  Flush();
  CheckAll();
  Same("free pages at the end", pool_.num_free(), shape_.num_pages);
  Same("pages in the cache at the end", pool_.cache().size(), 0);
}

// ---------------------------------------------------------------- comparing

bool PageTrial::Take(PageId page) {
  ++count_.allocated;
  if (!Same("an allocated page lies in the pool", page.value >= 1 && page.value <= shape_.num_pages,
            true, page.value)) {
    return false;
  }
  if (!Same("an allocated page was free", naive_.IsFree(page.value), true, page.value))
    return false;
  naive_.Take(page.value);
  return true;
}

// Equal texts have equal hashes; others have other ones, unless few bits are used.
bool PageTrial::SameHashes(const std::string& text, uint64_t hash) {
  for (int id = 1; id <= naive_.total(); ++id) {
    const NaivePool::Page& page = naive_.page(id);
    if (page.text.empty() || (page.text != text && shape_.hash_bits < 64)) continue;
    if ((page.hash == hash) == (page.text == text)) continue;
    return Same(("hash of " + text + " equals that of " + page.text).c_str(), page.hash == hash,
                page.text == text, id);
  }
  return true;
}

void PageTrial::CheckAll() {
  int used = 0;
  for (int id = 1; id <= shape_.num_pages; ++id) {
    const PageId page{id};
    const NaivePool::Page& expected = naive_.page(id);
    if (!Same("references", pool_.references(page), expected.references, id)) return;
    if (!Same("cached", pool_.cache().Holds(page), !expected.text.empty(), id)) return;
    used += pool_.references(page) > 0;
  }
  Same("pages in all", pool_.total(), shape_.num_pages);
  Same("free pages", pool_.num_free(), naive_.num_free());
  Same("cached pages that nobody uses", pool_.num_cached(), naive_.num_cached());
  Same("available pages", pool_.num_available(), naive_.num_free() + naive_.num_cached());
  Same("pages in the cache", pool_.cache().size(), naive_.num_held());
  Same("free, cached and used pages", pool_.num_free() + pool_.num_cached() + used, pool_.total());
  std::array<std::span<const PageId>, 10> tables = {loose_, replaced_};
  for (size_t i = 0; i < users_.size(); ++i) tables[i + 2] = users_[i]->table.pages();
  if (!fault_.empty()) return;
  if (const auto fault = pool_.Fault(std::span(tables).first(users_.size() + 2))) fault_ = *fault;
}

bool PageTrial::Same(const char* what, int64_t actual, int64_t expected, int page) {
  if (actual == expected) return true;
  if (!fault_.empty()) return false;
  if (page != 0) fault_ = "page " + std::to_string(page) + ": ";
  fault_ += std::string(what) + ": expected " + std::to_string(expected) + ", got " +
            std::to_string(actual);
  return false;
}

}  // namespace sluice::engine
