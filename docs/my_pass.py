"""A pass of your own: drop the feed-forward channels that hardly ever fire."""

from typing import ClassVar

from umcompress.extend import ChannelActivation, Evidence, KeepChannels, Plan, PlanError, Proposal, Ratio, SitePass


class QuietChannels(SitePass):
    """Drop channels whose mean activation is below a share of their layer's strongest."""

    name: ClassVar[str] = "quiet_channels"
    share: Ratio = 0.1

    def needs(self):
        return [ChannelActivation(self.scope())]

    def plan(self, graph, statistics):
        edits, evidence = [], []
        for site in graph.feed_forwards(**self.resolve(graph).query()):
            strength = [1.0] * site.width
            if not statistics.dry:
                strength = statistics[ChannelActivation(self.scope())][site].mean_abs.tolist()
            keep = tuple(j for j, value in enumerate(strength) if value >= self.share * max(strength))
            if len(keep) < site.width or statistics.dry:
                edits.append(KeepChannels(site=site.path, keep=keep))
                evidence.append(
                    Evidence(site=site.path, component=site.component, scores=strength, kept=keep)
                )
        if not edits:
            raise PlanError(f"{self.name}: share {self.share}", "every channel fires more", "raise share")
        return Proposal(Plan(pass_name=self.name, edits=edits, evidence=evidence))
