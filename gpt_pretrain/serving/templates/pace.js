const LEAST_SECONDS = 0.02; // events that arrive together say nothing about the pace

// Counts tokens and the time that they take.
class Pace {
  constructor() {
    this.began = performance.now();
    this.tokens = 0;
  }

  count(tokens) {
    if (!tokens) return;
    this.last = performance.now();
    if (!this.tokens) [this.first, this.firstTokens] = [this.last, tokens];
    this.tokens += tokens;
  }

  text() {
    if (!this.tokens) return "";
    const wait = `the first after ${((this.first - this.began) / 1000).toFixed(2)} s`;
    const seconds = (this.last - this.first) / 1000;
    const rate = seconds > LEAST_SECONDS ? `${((this.tokens - this.firstTokens) / seconds).toFixed(1)} tokens per second, ` : "";
    return `${this.tokens} ${this.tokens === 1 ? "token" : "tokens"}, ${rate}${wait}.`;
  }
}
