// The real Bull beside ours: `node peer.js REDIS_URL QUEUE [OPTIONS]`. One process takes many calls, since starting node takes
// longer than most of them. A line of stdin is a call, {"id", "do", "job", "args"}: of a command below, else of the method of
// that name of the job `job`, else of the queue's. A line of stdout is its answer, {"id", "ok"} or {"id", "error"}; they come
// in the order in which the calls end. NODE_PATH points to where scripts/test put the packages.
'use strict';

const readline = require('readline');
const Queue = require('bull');

const [url, name, options] = process.argv.slice(2);
const queue = new Queue(name, url, JSON.parse(options || '{}'));
queue.on('error', (error) => console.error(`peer of ${name}: ${error.message}`));

const GLOBAL = [
  'waiting', 'active', 'completed', 'failed', 'progress', 'stalled', 'paused', 'resumed', 'drained', 'duplicated', 'debounced',
];
const heard = [];

// What a job's data tells its handler to do; tests/integration/bull/peer.rs has the same.
async function work(job) {
  const { progress, log, note, ms, hang, fail } = job.data;
  if (progress !== undefined) await job.progress(progress);
  if (log !== undefined) await job.log(log);
  if (note !== undefined) await queue.client.multi().rpush(`${note}:order`, job.id).hincrby(note, job.id, 1).exec();
  if (ms !== undefined) await new Promise((resolve) => setTimeout(resolve, ms));
  if (hang) await new Promise(() => {});
  if (fail > job.attemptsMade) throw new Error(`boom ${job.attemptsMade + 1}`);
  return { by: 'bull' };
}

// bull-board without a web server: what its pages ask for is answered by its own handlers.
let board;
function openBoard() {
  const { createBullBoard } = require('@bull-board/api');
  const { BullAdapter } = require('@bull-board/api/bullAdapter');
  const found = {};
  const ignore = () => adapter;
  const adapter = {
    setQueues: (queues) => { found.queues = queues; return adapter; },
    setApiRoutes: (routes) => { found.routes = routes; return adapter; },
    setViewsPath: ignore, setStaticPath: ignore, setUIConfig: ignore, setEntryRoute: ignore, setErrorHandler: ignore,
  };
  createBullBoard({ queues: [new BullAdapter(queue)], serverAdapter: adapter });
  return found;
}

const commands = {
  // Runs jobs of any name.
  work(concurrency) {
    // It ends with the queue only.
    queue.process('*', concurrency, work).catch((error) => console.error(error.message));
    return queue.isReady().then(() => true);
  },
  // Keeps all that is published from now on.
  async listen() {
    await Promise.all(GLOBAL.map((event) => {
      const ready = new Promise((resolve) => queue.once(`registered:global:${event}`, resolve));
      queue.on(`global:${event}`, (...args) => heard.push([event, ...args.slice(0, event === 'drained' ? 0 : 2)]));
      return ready;
    }));
  },
  heard: () => heard,
  // Waits for a result as a producer does.
  finished: (id) => queue.getJob(id).then((job) => job.finished()).then((result) => ({ result }), (error) => ({ error: error.message })),
  // `method` and `route` as in bull-board's table of routes.
  async board(method, route, params, query, body) {
    board = board || openBoard();
    const found = board.routes.find((candidate) => candidate.method === method && candidate.route === route);
    if (!found) throw new Error(`bull-board has no ${method} ${route}`);
    const request = { queues: board.queues, params: { queueName: name, ...params }, query: query || {}, body: body || {} };
    const answer = await found.handler(request);
    return { status: answer.status || 200, body: answer.body };
  },
};

async function call({ do: what, job: id, args }) {
  if (commands[what] && id === undefined) return commands[what](...args);
  if (id === undefined) return queue[what](...args);
  const job = await queue.getJob(id);
  if (!job) throw new Error(`no job ${id}`);
  return job[what](...args);
}

readline.createInterface({ input: process.stdin }).on('line', (line) => {
  const request = JSON.parse(line);
  call(request)
    .then((ok) => ({ ok: ok === undefined ? null : ok }), (error) => ({ error: String(error && error.message) }))
    .then((answer) => process.stdout.write(`${JSON.stringify({ id: request.id, ...answer })}\n`));
}).on('close', () => process.exit(0));
