package dispatch

import (
	"context"
	"encoding/binary"
	"hash/fnv"
	"log/slog"
	"time"
)

const (
	// rankDelay is how much later each further replica looks at a company. It looks without a lock, and claims only where
	// those before it did not.
	rankDelay = 30 * time.Millisecond
	// replicasEvery is how often the list of replicas is read.
	replicasEvery = 2 * time.Second
)

// rank is this replica's place in the company's order of replicas: 0 is the first to look. Every replica finds the same
// order, and when one comes or goes only the companies move that it was the first of (rendezvous hashing).
func rank(company int64, self string, replicas []string) int {
	own, before := weigh(company, self), 0
	for _, id := range replicas {
		if w := weigh(company, id); id != self && (w > own || w == own && id > self) {
			before++
		}
	}
	return before
}

func weigh(company int64, replica string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(binary.LittleEndian.AppendUint64([]byte(replica), uint64(company))) // never fails
	// FNV's last bytes hardly reach its highest bits: mix them as splitmix64 does.
	v := h.Sum64()
	v = (v ^ v>>30) * 0xbf58476d1ce4e5b9
	v = (v ^ v>>27) * 0x94d049bb133111eb
	return v ^ v>>31
}

// watchReplicas keeps the ranks as the replicas come and go. While the ledger does not answer the last list holds.
func (d *Dispatcher) watchReplicas(ctx context.Context) {
	tick := time.NewTicker(replicasEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			replicas, err := d.config.Ledger.Replicas(ctx)
			if err == nil {
				d.setReplicas(replicas)
			}
		case <-ctx.Done():
			return
		}
	}
}

// setReplicas ranks this replica anew for every company.
func (d *Dispatcher) setReplicas(replicas []string) {
	d.updating.Lock()
	defer d.updating.Unlock()
	d.alive = replicas
	alive := max(1, len(replicas))
	if before := d.replicas.Swap(int64(alive)); before != int64(alive) {
		d.log.Info("replicas", slog.Int("alive", alive))
	}
	for _, c := range d.all() {
		if r := rank(c.ID, d.config.Ledger.Replica(), replicas); c.setRank(r, alive) {
			d.replan(c)
		}
	}
}
